"""A load generator for any OpenAI-compatible server.

`workload` decides what is asked and when, `client` sends one request and times what comes back,
`run` drives the clients, `report` turns the timings into figures. It measures from outside only:
token counts are the server's own (`usage`), times are this process's clock.
"""
