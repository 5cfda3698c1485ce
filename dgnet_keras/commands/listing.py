"""python -m dgnet_keras list | info NAME: the variants, their costs, and published weights."""

import math


def add_parsers(commands):
    """Adds the parsers of `list` and `info`, each with the function `run`."""
    listing = commands.add_parser(
        "list",
        help="a table of all variants",
        description="Parameters, MACs (multiply-adds) and edges of every variant with 1,000 "
        "classes, and what its routers add to the static twin. Each variant is built and counted.",
        epilog="Example: python -m dgnet_keras list --family regnet",
    )
    listing.add_argument("--family", help="only this family, such as resnet")
    listing.add_argument(
        "--pretrained",
        action="store_true",
        help="instead, the weights that timm published, with their accuracy on ImageNet as timm "
        "gives it, and their license",
    )
    listing.set_defaults(run=list_command)
    info = commands.add_parser(
        "info",
        help="one variant in detail",
        description="Stages, edges, parameters and MACs (multiply-adds) of one variant.",
        epilog="Example: python -m dgnet_keras info mobilenetv2_100 --num-classes 10",
    )
    info.add_argument("name", help="a variant, see `list`")
    info.set_defaults(run=info_command)
    for command in (listing, info):
        command.add_argument(
            "--image-size",
            type=int,
            help="height and width in pixels; by default 224, and 32 for the CIFAR variants",
        )
    info.add_argument("--num-classes", type=int, default=1000, help="1000 by default")
    info.add_argument("--max-nodes", type=int, help="bounds the blocks of one graph")


def wiring_parameters(model):
    """Number of parameters of routers, gates and edge logits."""
    from dgnet_keras.convert import is_wiring_weight

    return sum(math.prod(v.shape) for v in model.weights if is_wiring_weight(v.path))


def overhead(counted, model):
    """What the wiring of a dynamic model adds to its static twin.

    Returns:
        Dict: `parameters`, `router_macs`, `aggregation_macs`, each in % of the static twin.
    """
    wiring = wiring_parameters(model)
    kinds = counted["by_kind"]
    static_macs = kinds["convolution"] + kinds["dense"]
    return {
        "parameters": 100 * wiring / (counted["parameters"] - wiring),
        "router_macs": 100 * kinds["router"] / static_macs,
        "aggregation_macs": 100 * kinds["aggregation"] / static_macs,
    }


def input_shape(name, image_size):
    """(height, width, 3): the size asked for, or the variant's own."""
    from dgnet_keras.variants import family_of

    size = image_size or family_of(name).variants[name].default_image_size
    return (size, size, 3)


def count_variant(name, image_size, **options):
    """A variant's model, whose weights have no values and take no memory, and its counts."""
    import keras

    import dgnet_keras as dg

    with keras.StatelessScope(initialize_variables=False):
        model = dg.create(name, input_shape=input_shape(name, image_size), **options)
    return model, dg.count_macs(model)


def list_command(args):
    """Prints a row a variant as it is counted, or the published weights."""
    import keras

    import dgnet_keras as dg

    if args.pretrained:
        _list_pretrained(dg.list_variants(args.family))
        return
    print(
        f"{'variant':<18}{'parameters':>13}{'MACs':>17}{'edges':>7}"
        f"{'+parameters':>13}{'+router MACs':>14}{'+edge MACs':>12}"
    )
    for name in dg.list_variants(args.family):
        model, counted = count_variant(name, args.image_size)
        added = overhead(counted, model)
        edges = sum(edges for s in model.backbone.stages for _, _, edges in s.describe())
        print(
            f"{name:<18}{counted['parameters']:>13,}{counted['macs']:>17,}{edges:>7}"
            f"{added['parameters']:>12.3f}%{added['router_macs']:>13.4f}%"
            f"{added['aggregation_macs']:>11.3f}%",
            flush=True,
        )
        keras.backend.clear_session()


def _list_pretrained(variants):
    import dgnet_keras as dg

    print(f"{'weights':<42}{'top-1':>7}  {'pixels':>6}  license")
    for name in variants:
        for row in dg.list_pretrained(name):
            print(f"{row.weights:<42}{row.top1:>7.2%}  {row.image_size:>6}  {row.license}")
    print("\nTop-1 accuracy on ImageNet as timm publishes it. A name's part up to the point is the")
    print("variant. Use: dgnet_keras.create(variant, weights=name), or adapt name ... (both need")
    print("the extra hub and a network). Mind the licenses: cc-by-nc-4.0 forbids commercial use.")


def info_command(args):
    """Prints one variant's spec, stages and counts."""
    model, counted = count_variant(
        args.name, args.image_size, num_classes=args.num_classes, max_nodes=args.max_nodes
    )
    print(f"{args.name}: {model.backbone.spec}")
    print(f"images: {' x '.join(map(str, model.input_shape[1:]))}, classes: {args.num_classes}")
    print(f"\n{'graph':<16}{'nodes':>6}{'edges':>7}   features (height x width x channels)")
    for stage in model.backbone.stages:
        shape = " x ".join(map(str, stage.output["features"].shape[1:]))
        for key, nodes, edges in stage.describe():
            print(f"{key:<16}{nodes:>6}{edges:>7}   {shape}")
    added = overhead(counted, model)
    print(f"\nparameters: {counted['parameters']:,} (+{added['parameters']:.3f} % by the routers)")
    print(f"MACs of an image: {counted['macs']:,}")
    for kind, macs in counted["by_kind"].items():
        print(f"  {kind:<12}{macs:>17,}  {100 * macs / counted['macs']:7.3f} %")
