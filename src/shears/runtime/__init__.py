"""Running a model.

`native` computes logits from packed weights, `engine` turns the logits of any backend into
text, `loading` opens a model by its name, `speed` measures one.
"""
