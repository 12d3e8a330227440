"""Run the notebooks from top to bottom, each in a fresh kernel without a network, and write their outputs.

    python scripts/run_notebooks.py                    # all of notebooks/, in place
    python scripts/run_notebooks.py --to FOLDER A.ipynb B.ipynb

In place, a notebook that fails is not changed. With ``--to``, it is written up to the cell that failed. The exit status
is 1 if any failed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from ipykernel.kernelspec import write_kernel_spec
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
# Concurrent kernels; most of the time is spent on importing torch, on one core.
AT_ONCE = 2
CELL_SECONDS = 300
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# Run in each kernel before its first cell. Jupyter itself does not use Python's sockets.
OFFLINE = """
def _stay_offline():
    import sys

    def refuse(event, arguments):
        if event in ("socket.connect", "socket.sendto"):
            address = arguments[1]
            host = address[0] if isinstance(address, tuple) else None  # of a unix socket, a path
        elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
            host = arguments[0]
        else:
            return
        if host not in (None, "", "localhost", "127.0.0.1", "::1", b"localhost", b"127.0.0.1", b"::1"):
            raise OSError(f"notebooks run without a network, and this one asked for {host}")

    sys.addaudithook(refuse)


_stay_offline()
del _stay_offline
"""


async def run(path: Path, folder: Path) -> tuple[nbformat.NotebookNode, str]:
    """Run one notebook.

    Args:
        path: The notebook.
        folder: Contains ``kernels/`` with this interpreter's kernel.

    Returns:
        The notebook with outputs, and the error message, or ``""``.
    """
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata = nbformat.from_dict(METADATA)
    kernels = KernelSpecManager(kernel_dirs=[str(folder / "kernels")], ensure_native_kernel=False)
    with tempfile.TemporaryDirectory(dir=folder) as own:
        scratch = os.path.join(own, "scratch")
        os.mkdir(scratch)
        # Not TCP, so that no port is open. The address is the prefix of socket files, whose paths must be short.
        kernel = AsyncKernelManager(
            kernel_name="python3", kernel_spec_manager=kernels, transport="ipc", ip=os.path.join(own, "k")
        )
        client = NotebookClient(
            notebook,
            km=kernel,
            resources={"metadata": {"path": scratch}},
            timeout=CELL_SECONDS,
            record_timing=False,
        )

        async def stay_offline(notebook: nbformat.NotebookNode) -> None:
            reply = await client.kc.execute_interactive(OFFLINE, silent=True, timeout=CELL_SECONDS)
            if reply["content"]["status"] != "ok":
                raise RuntimeError("the kernel could not be kept offline")

        client.on_notebook_start = stay_offline
        try:
            await client.async_execute()
        except CellExecutionError as error:
            failure = str(error)
        else:
            left = sorted(os.listdir(scratch))
            failure = f"it left {', '.join(left)} in the folder that it was run in" if left else ""
        finally:
            client.kc.stop_channels()
            await kernel.shutdown_kernel(now=True)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = joined(cell.outputs)
    notebook.metadata = nbformat.from_dict(METADATA)  # nbclient adds the version of this interpreter
    return notebook, failure


def joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Outputs in which successive prints are joined, because the number of messages varies."""
    kept: list[nbformat.NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream" and kept and kept[-1].get("name") == output.name:
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


async def run_all(paths: list[Path], to: Path | None) -> int:
    """Run notebooks and write them; return the number that failed."""
    with tempfile.TemporaryDirectory(prefix="notebooks-") as name:
        folder = Path(name)
        write_kernel_spec(folder / "kernels" / "python3")
        # Without the user's start-up files and history, outputs are the same on every machine.
        os.environ["IPYTHONDIR"] = str(folder / "ipython")
        os.environ["JUPYTER_RUNTIME_DIR"] = str(folder / "runtime")
        os.environ["TMPDIR"] = tempfile.mkdtemp(dir=folder)  # deleted with the folder
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["OMP_NUM_THREADS"] = "1"
        # tqdm's warning where ipywidgets is not installed.
        os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
        turn = asyncio.Semaphore(AT_ONCE)

        async def run_one(path: Path) -> bool:
            async with turn:
                notebook, failure = await run(path, folder)
            if to is not None or not failure:
                nbformat.write(notebook, path if to is None else to / path.name)
            print(f"{path.name}: {failure or 'done'}", flush=True)
            return bool(failure)

        return sum(await asyncio.gather(*map(run_one, paths)))


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, help="notebooks to run; default: all of notebooks/")
    parser.add_argument("--to", type=Path, help="folder to write to; default: in place")
    arguments = parser.parse_args()
    paths = arguments.notebooks or sorted(NOTEBOOKS.glob("*.ipynb"))
    return 1 if asyncio.run(run_all(paths, arguments.to)) else 0


if __name__ == "__main__":
    sys.exit(main())
