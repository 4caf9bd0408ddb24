from tests.cuda_kit import compiled_cuda, cuda, leaky_cuda

__all__ = ["compiled_cuda", "cuda", "leaky_cuda"]
