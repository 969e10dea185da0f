"""The registry of people, banks and models, and the files beside it. Knows neither engine nor terminal."""
