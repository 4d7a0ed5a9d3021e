"""How good a model is: metrics, the evaluation on held-out clips, and the page that shows them."""
