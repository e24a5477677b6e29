"""What a run needs and the paper does not mention."""
