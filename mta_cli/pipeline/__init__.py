"""Jobs: the only place that joins store and engine. Each job is a generator of events.

Read in the order of the data: data, models, training, bank, memory, personalize, chat, evaluation; beside them
users and maintenance.
"""
