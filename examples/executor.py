"""ClusterExecutor: the futures of the standard library, on a cluster.

On a cluster that is already up, one line is enough: `with cwmp.ClusterExecutor() as executor:`.
"""

import math

import cwmp


def is_prime(number):
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def main():
    numbers = range(10**12, 10**12 + 100)
    with cwmp.LocalCluster() as cluster, cluster.executor() as executor:
        future = executor.submit(is_prime, 2**31 - 1)  # one job: a future
        print("2**31 - 1 is prime:", future.result())
        for number, prime in zip(numbers, executor.map(is_prime, numbers)):  # many: in order
            if prime:
                print(number)


if __name__ == "__main__":
    main()
