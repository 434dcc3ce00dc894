"""Every field of a run's configuration, with the first paper's settings."""

from typing import Any

import ml_collections

SEEDS_APART = 1000  # of fine-tuning, in an experiment's repetitions, so that none occurs in two


def default() -> ml_collections.ConfigDict:
    """The settings of SimCLR+Elevation in section 5.1.1 of arXiv 2304.06857.

    The result is locked: a config file or flag that names an unknown field fails at once.
    """
    config = ml_collections.ConfigDict()
    config.task = "pretrain"  # or "finetune", or "experiment": many of both
    config.seed = 0
    # Chips a step, over all devices; a fine-tuning that has fewer takes all in one.
    config.batch_size = 256
    # Chips that the network sees at a time, over all devices; 0 is the batch. The gradient is that
    # of the whole batch, for a second forward pass; BatchNorm's statistics are those of the part.
    config.microbatch_size = 0
    config.epochs = 200
    # The run whose encoder to start from, or what convert --to run makes of others' weights; "" is
    # none. Of an experiment it is that of its pre-trainings, see there.
    config.init_from = ""
    # For each band of the images the one of that run's images, from 0, whose kernels it takes: as
    # many as there are here, where these are others. () is all in their order.
    config.init_bands = ()
    config.init_decoder = False  # a pre-training takes the elevation decoder, too

    config.data = data = ml_collections.ConfigDict()
    data.name = "nwrc/classification"  # TFDS name and builder config
    data.dir = ""  # TFDS' data_dir; "" is ~/tensorflow_datasets
    data.split = "unlabeled+labeled[80:]"
    data.eval_split = "test"
    data.probe_split = "labeled[:80]"  # trains the probes; "" for none
    # The linear probe's C is chosen on it; "" chooses by cross-validation where the probe learns.
    # And the epoch of a fine-tuning by itself that counts; "" is the last.
    data.validation_split = ""
    # The features that are joined to the network's image: sensors, and "elevation", if that is to
    # be seen, as the last.
    data.inputs = ("image",)
    # Sensor units that become 0 and 1: a pair, a pair for each band of all inputs, (name, low,
    # high) for each sensor, or ("auto",), measured on the chips to learn from (half a per cent
    # lies outside, on either side).
    data.value_range = (0.0, 6000.0)
    # With `std` the network sees (x - mean) / std of what lies in the range, x in sensor units:
    # numbers for all bands, for each, or ("auto",).
    data.mean = ()
    data.std = ()
    # "range": 0..1 as above; "crop_max": each band of each image is divided by its maximum over the
    # image after that, which leaves nothing of how bright a place is (Dual-SimCLR's code).
    data.scaling = "range"
    data.bands = ()  # those that the network sees, counted from 0 over all sensors; () is all
    data.nodata = ()  # the sensor value that means none, or one a sensor; () is what the data say
    data.elevation_scale = 500.0  # metres that become 1
    # Bands that are red, green, blue, counted likewise; () means those of a three-band image.
    data.rgb = ()
    data.near_infrared = ()  # the band that is, for objective.target=ndvi; () is not said
    # Other ground, of a study: its tasks are done there too, with encoders that have never seen it.
    # It has as many bands; its values may be of another sensor.
    data.transfer = transfer = ml_collections.ConfigDict()
    transfer.name = ""  # TFDS name and builder config; "" is none
    transfer.dir = ""  # "" is data.dir
    transfer.split = "labeled"  # that labels are taken from
    transfer.eval_split = "test"
    transfer.validation_split = ""
    transfer.inputs = ()  # as data.inputs, and so on; () is the same
    transfer.bands = ()
    transfer.value_range = ("auto",)
    data.resident_gib = 4.0  # data above this size are streamed rather than held on the device
    data.synthetic = ml_collections.ConfigDict()
    data.synthetic.chips = 0  # make this many synthetic chips in the run folder and use them
    data.synthetic.size = 100  # pixels along their side

    config.augment = ml_collections.ConfigDict()
    # Side in pixels of the square that is cut out of a chip at a random place, before anything
    # else; tests are on squares at fixed places. 0 is the whole chip.
    config.augment.crop_size = 0
    config.augment.contrastive = contrastive = ml_collections.ConfigDict()
    contrastive.crop_scale = (0.7, 1.0)  # share of the area
    contrastive.crop_ratio = (3 / 4, 4 / 3)  # width over height
    contrastive.flip = 0.5  # probability of each of the two
    contrastive.brightness = 0.4
    contrastive.contrast = 0.4
    contrastive.saturation = 0.4
    contrastive.hue = 0.2  # turns of the colour circle
    contrastive.jitter_probability = 0.5
    contrastive.grayscale = 0.2  # probability
    config.augment.elevation = elevation = ml_collections.ConfigDict()
    elevation.flip = 0.5
    elevation.brightness = 0.2
    elevation.contrast = 0.2
    elevation.saturation = 0.2
    elevation.hue = 0.2
    elevation.jitter_probability = 0.3
    elevation.grayscale = 0.2
    # Flips and a quarter turn leave every pixel whole, so that they suit masks, and an image has
    # just eight such views, so that a frozen encoder need see each only once.
    config.augment.finetune = finetune = ml_collections.ConfigDict()
    finetune.flip = 0.5  # probability of each of the two
    finetune.transpose = 0.5  # probability

    config.model = model = ml_collections.ConfigDict()
    model.encoder = "resnet18"
    # Several inputs: bands of one image ("early"), or an encoder for each, whose features are
    # joined ("late").
    model.fusion = "early"
    model.width = 1.0  # multiplies the channels, for small machines
    model.dtype = "auto"  # of the computation: bfloat16, or float32 on a CPU
    model.projection = (512, 128)  # hidden units and embedding; () of two sensors is none
    # What the elevation decoder's convolutions see around a map: "zeros", or "edge", its own border
    # again, without which a frame shows in the elevation.
    model.elevation_padding = "zeros"
    # Parts of the batch, or of a microbatch, each normalised by statistics of its own in
    # pre-training. As many as there are devices spares them two exchanges a layer, and leaves each
    # chip's statistics to fewer others; 1 is the whole batch, on any number of devices.
    model.batchnorm_groups = 1

    config.objective = objective = ml_collections.ConfigDict()
    objective.alpha = 0.5  # L = alpha L_E + (1 - alpha) (lam L_G + (1 - lam) L_L)
    objective.lam = 1.0
    # What the elevation branch learns: "elevation", or, as a control, another chip's ("shuffled"),
    # its "slope", the "brightness" of the image, or its "ndvi".
    objective.target = "elevation"
    objective.temperature = 0.5
    # What belongs together: two augmented "views" of a chip, or what two "sensors" see of it.
    objective.positives = "views"
    # What it is told from: "all" other chips' views, or those "across", of the other sensor alone.
    objective.negatives = "all"
    # What the projection head sees of the encoder's last map: its "mean", or its "style", mean and
    # variance. GLCNet and the paper's text have style, the paper's code has the mean for all. The
    # whole "map", without a head, is compared pixel by pixel (two sensors, MMA).
    objective.global_features = "mean"
    objective.local = local = ml_collections.ConfigDict()
    local.patches = 4  # matching patches of each image
    local.patch_size = 16  # side in pixels of a view
    local.projection = (128, 128)  # hidden units and embedding

    config.loss = loss = ml_collections.ConfigDict()
    loss.chunk_size = 0  # columns of the similarity matrix at a time; 0 is all
    # Equation 5 sums over pixels, the text says root mean square; "mean" is what the reference
    # code computes and what keeps the two terms of one size.
    loss.elevation_reduction = "mean"
    # The squared error on elevation is that of a chip's mean, its level, and that of what is left,
    # its relief, which is so much the smaller that it is hardly learned. The weights of the two; 1
    # and 1 is the paper's plain sum.
    loss.level_weight = 1.0
    loss.relief_weight = 1.0

    config.optimizer = optimizer = ml_collections.ConfigDict()
    optimizer.learning_rate = 1e-3
    optimizer.scaling = "none"  # of the rate by batch_size / 256: "linear", or its root, "sqrt"
    optimizer.warmup_epochs = 0.0  # over which the rate rises from zero
    optimizer.schedule = "cosine"  # decays to zero after that; or "constant"
    # From when on a constant rate is a tenth; 0 is never. Of fine-tuning, the epochs after the
    # frozen stage count; a method whose encoder stays frozen counts both.
    optimizer.drop_epoch = 0
    # Times the rate of the encoder's weights; below 1 those that are given change less than others.
    optimizer.encoder_scale = 1.0
    optimizer.weight_decay = 1e-4
    # The text has Adam with weight decay, the code AdamW: "adamw" decays the weights themselves,
    # as the code does; "adam" adds the decay to the gradient (L2), as PyTorch's Adam does. "lars"
    # is for large batches.
    optimizer.name = "adamw"

    # Stage one of fine-tuning: the encoder stands still, the new layers learn. Stage two, all of
    # it, has the fields above: batch_size, epochs, optimizer.
    config.finetune = finetune = ml_collections.ConfigDict()
    # One layer on the pooled features, or a class per pixel: "unet" (the decoder of arXiv
    # 2304.06857), "plain_unet", or "swin_unet" for Swin encoders. An experiment may compare what
    # frozen features tell, too: by logistic regression ("probe"), or the five nearest ("knn").
    # "regression" tells a quantity, in the cells in which the data have it, by the U-Net's decoder.
    finetune.head = "linear"
    # What is learned: the data's "label" of a chip or "mask" of its pixels, or of the mask within
    # the crop that is seen the "commonest" class or each that is "present". "" is label, or mask
    # where the head tells pixels. A regression learns "elevation", which is "", or the data's
    # "quantity".
    finetune.target = ""
    finetune.present_share = 0.1  # of the crop that a class covers at least that is present
    finetune.num_classes = 0  # 0 is as many as the data have
    finetune.classes = ()  # their names; () is what the data say
    # Mean and standard deviation of what a regression tells, which become 0 and 1; () measures the
    # labels that are learned from.
    finetune.scale = ()
    finetune.quantity = ()  # its name and unit; () is what the data say
    # Devices of the machine that share each batch of a fine-tuning by itself, which they divide; 0
    # is all. Small batches are done sooner on one.
    finetune.devices = 1
    finetune.frozen_epochs = 20
    finetune.frozen_learning_rate = 1e-3
    # Stage two ends after so many epochs of which none is the best on data.validation_split; 0 is
    # after all.
    finetune.patience = 0
    # BatchNorm of the frozen encoder. In "inference" mode the encoder is one fixed function, with
    # the statistics of all its pre-training rather than those of eight chips, and each view of a
    # chip is computed once for all epochs. "training" is what PyTorch does if nothing is said.
    finetune.frozen_batchnorm = "inference"
    # What is minimised of one class a chip or pixel: "cross_entropy", "focal" (arXiv 1708.02002),
    # "dice" (arXiv 1606.04797), or "cross_entropy+dice".
    finetune.loss = "cross_entropy"
    finetune.focal_gamma = 2.0  # 0 is cross-entropy
    finetune.label_smoothing = 0.0  # of cross-entropy
    # What an error weighs by the class that is right: a number for each, or ("balanced",), by which
    # all classes weigh alike in the labels that are learned from. () is one for each.
    finetune.class_weights = ()
    # Chips of rare classes come about as often in an epoch as those of the commonest.
    finetune.oversample = False
    # Probability that a chip's image of one of several sensors is left out, so that the network
    # learns to do without.
    finetune.drop_sensor = 0.0

    # Many runs. A repetition draws anew what is left to chance: it pre-trains each method (random:
    # draws its initial encoder) and fine-tunes it for every label count, label draw and seed. The
    # repetitions are what intervals and verdicts are drawn from.
    config.experiment = experiment = ml_collections.ConfigDict()
    experiment.methods = ("random", "simclr", "elevation", "simclr_elev")
    experiment.encoders = ()  # NAME=FOLDER of runs, or of what convert makes, for from_NAME
    experiment.labels = (80,)  # labelled chips; a fraction is that share of all
    experiment.split = "labeled"  # that they are taken from
    # The first so many, or drawn, are of each class as many as in the split's first (False), or
    # such that every class is there, and has its share in the whole split (True).
    experiment.stratified = False
    # What the encoders are judged by, as `finetune.head`, if it is more than that: a study. And how
    # long it may take, in hours; it then stops after as many whole repetitions as fit. 0 is no end.
    experiment.tasks = ()
    experiment.budget_hours = 0.0
    experiment.metrics = ()  # that are compared, of `metrics.scores`; () is two that suit the head
    experiment.pretrain_seeds = 3  # repetitions
    # Sets of labelled chips drawn from all of `split`, for each repetition; 0: always the first.
    experiment.label_draws = 0
    experiment.seeds = 10  # fine-tunings of each pre-training and set of labels
    experiment.pretrain = pretrain = ml_collections.ConfigDict()
    # The data and the split to score by, as `data.name` and `data.eval_split`; "" is the same.
    pretrain.name = ""
    pretrain.eval_split = ""
    pretrain.split = "unlabeled+labeled[80:]"
    pretrain.batch_size = 256
    pretrain.epochs = 200
    pretrain.init_from = ""  # as config.init_from, of all of them
    pretrain.init_bands = ()
    pretrain.optimizer = ml_collections.ConfigDict(optimizer.to_dict())

    config.checkpoint = checkpoint = ml_collections.ConfigDict()
    checkpoint.every_epochs = 5
    checkpoint.keep = 2

    config.log = log = ml_collections.ConfigDict()
    log.every_steps = 20
    log.eval_every_epochs = 10
    return config.lock()


def class_names(config: Any, count: int | None = None) -> tuple[str, ...]:
    """The names of the classes of `config.finetune`, or their numbers where it has none.

    `count` is how many there are, if the configuration may leave that to the data.
    """
    settings = config["finetune"]
    named = tuple(settings.get("classes", ()))
    return named or tuple(map(str, range(count or settings["num_classes"])))
