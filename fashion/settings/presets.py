"""Named groups of settings. An explicit option of `train` overrides the preset.

What a preset says of its network is not used for another: see `Experiment.from_options`.
"""

PRESETS: dict[str, dict[str, str | float | bool]] = {
    # The default of every option.
    "lab": {},
    # The best settings found within about the training time of the lab's own CNN on two cores.
    "fast": {
        "model": "compact",
        "hidden_units": 16,
        "whiten": True,
        "epochs": 5,
        "batch_size": 128,
        "optimizer": "muon",
        "lr": 0.03,
        "weight_decay": 0.01,
        "schedule": "one-cycle",
        "warmup_epochs": 0.5,
        "label_smoothing": 0.1,
        "augment": "alternate",
        "tta": True,
    },
    "accurate": {
        "model": "resnet",
        "hidden_units": 24,
        "blocks": 2,
        "epochs": 10,
        "batch_size": 128,
        "optimizer": "muon",
        "lr": 0.02,
        "weight_decay": 0.01,
        "schedule": "one-cycle",
        "warmup_epochs": 1,
        "label_smoothing": 0.1,
        "augment": "alternate,shift",
        "tta": True,
    },
    # The same for one GPU, where wider networks, larger batches and half precision are as fast.
    "fast-gpu": {
        "model": "resnet",
        "hidden_units": 32,
        "blocks": 2,
        "epochs": 10,
        "batch_size": 1024,
        "optimizer": "muon",
        "lr": 0.04,
        "weight_decay": 0.01,
        "schedule": "one-cycle",
        "warmup_epochs": 2,
        "label_smoothing": 0.1,
        "augment": "alternate,shift",
        "precision": "bfloat16",
        "tta": True,
    },
    "accurate-gpu": {
        "model": "resnet",
        "hidden_units": 64,
        "blocks": 2,
        "epochs": 72,
        "batch_size": 512,
        "optimizer": "muon",
        "lr": 0.02,
        "weight_decay": 0.01,
        "schedule": "one-cycle",
        "warmup_epochs": 5,
        "label_smoothing": 0.1,
        "augment": "alternate,shift,erase",
        "precision": "bfloat16",
        "tta": True,
    },
}
