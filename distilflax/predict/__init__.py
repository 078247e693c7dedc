"""Models as their users call them: text in, plain values out.

import distilflax
model = distilflax.load("runs/sst2/seed0/model")      # or any HF folder, hub name, package:...
model.classify("a charming film")                     # {"label": "1", "score": 0.99}
"""

from distilflax.predict.predictor import Predictor, load

__all__ = ["Predictor", "load"]
