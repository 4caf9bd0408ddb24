"""Windows of a sensor's recording, cut once and read many times: for calibration, evaluation and training.

::

    plan = WindowPlan(SensorForm(), times=camera_stamps)       # float64 seconds, on the sensor's clock
    store = build_store("sensor_data_17.npz", plan, "windows/", progress=show)
    store[3]                                                   # a SensorWindow; nothing else is read
    DataLoader(TrainingWindows(store), batch_sampler=store.batches(32, seed=0), num_workers=4)

Read in this order: ``npz_file`` and ``recording`` (what is read), ``plan`` and ``cut`` (which samples belong to which
window), ``storage`` (float32, float16, int8), ``store_record`` and ``build`` (what is written), ``store``, ``batches``
and ``training`` (how it is read back).
"""
