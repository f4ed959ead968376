"""The model that is trained and shipped: tokens, network, training, the folder that users get."""
