"""An engine with a clock in place of a GPU: vLLM's and TGI's faces over a model of how long each step takes.

`engine` is the pure step model; `config` describes one engine; `truth` says how long an answer is; `loop` steps the
engine in (scaled) real time; `vllm_face` and `tgi_face` speak the engines' HTTP; `server` puts them on a socket.
"""
