"""CUDA through the driver's own library, by ctypes: no PyTorch, no pycuda, nothing to install beside the driver.

- :mod:`trunkline.runtime.cuda.driver` asks whether there is a usable driver and GPU. It comes before everything else:
  some of NVIDIA's libraries end the process, instead of raising, where there is none.
- :mod:`trunkline.runtime.cuda.context` makes the GPU current for the thread that needs it.
- :mod:`trunkline.runtime.cuda.memory`, :mod:`~trunkline.runtime.cuda.stream` and :mod:`~trunkline.runtime.cuda.graph`
  hold what inference needs of CUDA: memory on both sides, work in order, and work recorded once and repeated.

There is one GPU: the first that the driver shows. ``CUDA_VISIBLE_DEVICES`` says which one that is. Everything here
works in the GPU's primary context, the one that TensorRT uses, too.

Whatever the driver answers is checked, and every failure is a :class:`~trunkline.runtime.errors.BackendError` with the
driver's own name for it. All of it was tested against a library that behaves as the driver's does
(``tests/runtime/cuda``). **It has never run on a GPU.**
"""
