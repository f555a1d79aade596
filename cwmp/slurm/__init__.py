"""Clusters whose master and workers are SLURM jobs: started, watched, held at their size, and stopped.

Inside, modules import downward: `commands` and `options`, then `scripts` and `records`, `view` and `keeper`,
`launcher`, `holding` and `allocation`, `cluster`.
"""
