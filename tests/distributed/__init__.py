"""Several processes on CPUs, over gloo, by the road that accelerate takes on GPUs (`make test-distributed`)."""
