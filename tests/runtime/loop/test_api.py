"""What users import from the loop changes on purpose only."""

import trunkline.runtime.loop


def test_the_loop_shows_these_names() -> None:
    names = [
        *(
            "CachedSensor",
            "Clock",
            "Decided",
            "Frame",
            "FrameSource",
            "LiveFrames",
            "Loop",
            "LoopPlan",
            "LoopReport",
            "Outcome",
        ),
        *("Question", "QuestionSource", "Rate", "Record", "Refused", "Scorer", "SensorSource", "SimulatedClock"),
        *("Sources", "Spread", "SystemClock", "TaskReport", "recorded_by"),
    ]
    assert sorted(trunkline.runtime.loop.__all__) == names
    assert all(hasattr(trunkline.runtime.loop, name) for name in names)
