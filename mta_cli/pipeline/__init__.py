"""Jobs: the only layer that joins store and engine. Each job is a generator of events.

Read the packages in this order: data, models, training, bank, memory, personalize, chat, evaluation; then users and
maintenance.
"""
