from planish.report.blocks import Place, kinds_of, locate


def test_blocks_are_found_by_their_numbers() -> None:
    names = ["model.embed", *(f"model.layers.{block}.mlp.up" for block in range(5)), "lm_head"]
    assert locate(names) == [
        Place("embed", None),
        *(Place("mlp.up", block) for block in range(5)),
        Place("lm_head", None),
    ]


def test_the_longest_list_counts_not_the_lists_within() -> None:
    names = [f"h.{block}.experts.{expert}.up" for block in range(8) for expert in range(4)]
    places = locate(names)
    assert places[5] == Place("experts.1.up", 1)


def test_few_blocks_are_layers_of_their_own() -> None:
    names = [f"stages.{stage}.conv" for stage in range(3)]
    assert locate(names) == [Place(name, None) for name in names]


def test_kinds_add_up() -> None:
    layers = [{"layer": f"layers.{block}.up", "nbytes": [10, block]} for block in range(5)] + [
        {"layer": "head", "nbytes": [7, 7]}
    ]
    up, head = kinds_of(layers)
    assert (up.name, up.blocks, up.nbytes) == ("up", (0, 1, 2, 3, 4), (50, 10))
    assert (head.name, head.blocks, head.nbytes) == ("head", (None,), (7, 7))
    assert kinds_of([]) == ()
