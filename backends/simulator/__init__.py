"""A simulated engine: the HTTP API of vLLM or TGI over a model of the duration of each step.

`engine` is the pure model of the steps. `config` describes one engine. `truth` gives the length of each answer. `loop`
runs the engine in real or scaled time. `vllm_api` and `tgi_api` serve HTTP requests. `server` listens on a socket.
"""
