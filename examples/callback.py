"""ClientThread: each result goes to a callback as soon as it is there.

On a cluster that is already up, one line is enough: `with cwmp.ClientThread(done) as client:`.
"""

import math

import cwmp


def smallest_divisor(number):
    return next((divisor for divisor in range(2, math.isqrt(number) + 1) if number % divisor == 0), number)


def done(jobid, result):
    """Runs here, once a job, in the order in which jobs end."""
    print(jobid, "is prime" if result == jobid else f"= {result} x {jobid // result}")


def main():
    with cwmp.LocalCluster() as cluster, cluster.client(done) as client:
        for number in range(10**12 + 1, 10**12 + 100, 2):
            client.submit(number, smallest_divisor, number)  # any hashable is a job id
    # The client waited for all its jobs on the way out; a job that failed would have raised here.


if __name__ == "__main__":
    main()
