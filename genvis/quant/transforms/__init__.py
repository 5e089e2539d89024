"""Transformations before rounding: `genvis.quant.transform` says what one is."""
