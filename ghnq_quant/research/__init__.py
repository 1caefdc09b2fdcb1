"""The laboratory: training, measuring and comparing hypernetworks. The library never imports it."""
