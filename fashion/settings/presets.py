"""Settings that go together, by name. Any option of `train` overrides its preset's."""

PRESETS: dict[str, dict[str, str | float | bool]] = {
    # The defaults of every option.
    "lab": {},
    # The best found for the time that the lab's own loop takes for its CNN on two cores.
    "fast": {
        "model": "compact",
        "hidden_units": 16,
        "epochs": 5,
        "batch_size": 128,
        "optimizer": "muon",
        "lr": 0.02,
        "weight_decay": 0.01,
        "schedule": "one-cycle",
        "warmup_epochs": 0.5,
        "label_smoothing": 0.05,
    },
    "accurate": {
        "model": "compact",
        "hidden_units": 32,
        "epochs": 20,
        "batch_size": 128,
        "optimizer": "muon",
        "lr": 0.02,
        "weight_decay": 0.01,
        "schedule": "one-cycle",
        "warmup_epochs": 2,
        "label_smoothing": 0.05,
        "augment": "flip,shift",
        "ema_decay": 0.998,
        "tta": True,
    },
}
