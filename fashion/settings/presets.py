"""Named groups of settings. An explicit option of `train` overrides the preset."""

PRESETS: dict[str, dict[str, str | float | bool]] = {
    # The default of every option.
    "lab": {},
    # The best settings found within the training time of the lab's own CNN on two cores.
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
