#!/bin/bash
# sbatch examples/parts/slurm.sh: sixteen parts, each a task of one array, on whatever nodes are free.
# To do again what was lost: sbatch --array=3,7 examples/parts/slurm.sh
#SBATCH --array=0-15
#SBATCH --time=1:00:00
#SBATCH --signal=TERM@60    # a minute before the limit: the present piece is finished and saved
srun python examples/parts/run.py --folder "${FOLDER:-out/parts}" --part "$SLURM_ARRAY_TASK_ID" --parts 16
