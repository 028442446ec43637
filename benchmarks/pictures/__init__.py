"""Pictures of quantized bundles and of outliers."""
