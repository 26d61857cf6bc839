"""vLLM on a CPU: `make test-vllm`. Without vLLM nothing here is collected."""

import importlib.util
import os

collect_ignore_glob = [] if importlib.util.find_spec("vllm") else ["*"]
os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_HOST_IP="127.0.0.1", VLLM_NO_USAGE_STATS="1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
