"""TensorFlow as what it is here for, writing files: in silence, and without the GPU."""

import contextlib
import os
import sys
import tempfile


def import_tensorflow() -> None:
    """Imports it, if that hasn't been done, without its greetings, and hides GPUs from it.

    The GPU is JAX's. What its libraries print of one that they miss, and before their settings are
    read, is no concern of the user's; if the import fails, it is printed after all.
    """
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        terminal = os.dup(2)
    except OSError:  # it is closed: nobody hears anything anyway
        terminal = os.open(os.devnull, os.O_WRONLY)
    if sys.stderr is not None:
        sys.stderr.flush()
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            import tensorflow

            with contextlib.suppress(RuntimeError):  # it has its devices already
                tensorflow.config.set_visible_devices([], "GPU")
        except BaseException:
            said.seek(0)
            os.write(terminal, said.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
