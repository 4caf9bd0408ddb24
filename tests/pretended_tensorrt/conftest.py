from tests.pretended_tensorrt.fixtures import compiled_cuda, cuda, install, leaky_cuda, trt, trt_of_every_version, world

__all__ = ["compiled_cuda", "cuda", "install", "leaky_cuda", "trt", "trt_of_every_version", "world"]
