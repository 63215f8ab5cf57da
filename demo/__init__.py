"""The bundled demo model: its data, its tokenizer, its training and its evaluation.

Nothing of this is needed to serve. What `python -m demo.train` makes of it lies in
`server/demo_model/`, next to a model card with the scores that `python -m demo.evaluate` gave it.
"""
