"""Every rank of a distributed PyTorch job on one TensorBoard.

    import ranktap

    tap = ranktap.init("digits/lr=0.1", endpoint="tcp://loghost:5757")
    tap.scalar("loss/train", loss, step)

Nothing that is logged waits for a disk, a network or the daemon.
"""

from ranktap.drop_in import SummaryWriter
from ranktap.opening import init
from ranktap.tap import Tap

__all__ = ["SummaryWriter", "Tap", "__version__", "init"]
__version__ = "0.1.0"
