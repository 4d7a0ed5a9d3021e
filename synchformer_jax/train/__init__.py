"""One trainer for every stage: `python -m synchformer_jax.train --config configs/X.py --workdir DIR`."""
