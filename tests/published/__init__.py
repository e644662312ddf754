"""Published checkpoints of the supported families, without their weights.

68 configurations: 39 of published checkpoints, 16 written down from documented sizes (sizes.py), and what transformers
assumes for 13 families. All build. Of 65 that transformers knows, every tensor (350,000 names) finds its parameter and
its shape, in the layout that transformers saves and, where there is another one, in that of its modules;
layers, windows, rotary frequencies and vocabularies are transformers' own, and so are the sizes of pictures by 19
published settings. Eight published indexes (11,600 names) are placed too, one of them of a mix of 4 and 8 bits.
Refused by name: 21 configurations of other families and layouts, and weights of modelopt, float compressed-tensors,
bitsandbytes and auto-round.

    configs.json     configurations, trimmed to what a network is made of
    tensors.txt      names and shapes that transformers makes of them; indexes.txt: names in published indexes
    facts.json       counts, layers, rotary frequencies and ids by transformers; processors.json: sizes of pictures
    make_published.py, make_processors.py   write these; folding.py names folded to patterns
"""
