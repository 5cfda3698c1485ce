"""python -m dgnet_keras adapt SOURCE: from a trained network to one that computes less."""


def add_parsers(commands):
    """Adds the parser of `adapt`, with the function `run`."""
    adapt = commands.add_parser(
        "adapt",
        help="from a trained network to one that computes less, in one command",
        description="Makes paths of a trained static network, which learn from it and from labels "
        "what to leave out. Calibrates them, evaluates both networks on held-out images, times "
        "them, prints one table, and exports a SavedModel with a dial. Where the folders have "
        "other classes than the network, it is fitted to these first. The same command again goes "
        "on with what was stopped. Runs from a checkout, which has the training commands.",
        epilog="Example: python -m dgnet_keras adapt runs/static --data-dir cifar10 --macs 0.6 "
        "--workdir runs/adapted",
    )
    adapt.add_argument(
        "source",
        help="the trained network: the folder of a run; a .keras, .weights.h5, timm's "
        ".safetensors or .npz file; or a hub name such as timm/resnet50.a1_in1k",
    )
    adapt.add_argument(
        "--data-dir", required=True, help="folder of train/<class>/ and test/<class>/, or <class>/"
    )
    adapt.add_argument("--workdir", required=True, help="folder for the runs")
    adapt.add_argument(
        "--macs", type=float, default=0.6, help="share of its multiply-adds to compute (0.6)"
    )
    adapt.add_argument("--model", help="the network's variant, where its file does not say")
    adapt.add_argument(
        "--epochs",
        type=int,
        help="of the paths; by default 10, or as many as make 1,500 updates where images are few",
    )
    adapt.add_argument(
        "--fit-epochs",
        type=int,
        help="of fitting the static network to the images first; by default none, or as many as "
        "--epochs where classes differ",
    )
    adapt.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="changes one key of the recipe, such as --set random_flip=false; may be repeated",
    )
    adapt.add_argument(
        "--strategy", default="one_device", help="one_device (default), mirrored, ..."
    )
    adapt.set_defaults(run=adapt_command)


def adapt_command(args):
    """Adapts a network."""
    try:
        from train.classification.adapting import adapt
        from train.command_line import ending_clearly
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "train":
            raise
        raise ImportError(
            "`adapt` trains, and the training commands run from a checkout: run it there"
        ) from error
    with ending_clearly("dgnet_keras", args.workdir):
        adapt(
            args.source,
            args.data_dir,
            args.workdir,
            macs=args.macs,
            model=args.model,
            epochs=args.epochs,
            fit_epochs=args.fit_epochs,
            overrides=args.overrides,
            strategy=args.strategy,
        )
