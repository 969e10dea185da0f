"""The product's methods of personalising a model. The evaluation calls the same code.

A method is five choices: the shared weights, the anchors and their weights, the stack, the label memory, and whether
the prompt shows history. Read `method` first, then `anchor_weights` (stage 2), `stacks` (stage 3) and `personalize`
(all of them). `majority` answers without a model. Other methods, and all names, are in `mta_cli.lab.methods`.
"""
