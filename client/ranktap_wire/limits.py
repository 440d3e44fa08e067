"""Every bound of the protocol and the journal, with its unit and its reason.

Both sides read this file, but they are upgraded separately: what the client
must respect arrives in the daemon's `welcome`, and these are the defaults.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20

# -- messages ---------------------------------------------------------------------------

HEADER_BYTES: Final = 64 * KIB
"""A message's msgpack header. Tag tables and data travel in buffers, so that
the part which has to be unpacked stays small whatever is sent."""

RECORD_BYTES: Final = 64 * MIB
"""One tensor, picture or text: 16 million float32. It is also libzmq's
MAXMSGSIZE, which closes the connection, with the valid messages behind it,
when a frame is larger: the client checks at the call."""

MESSAGE_BYTES: Final = 2 * RECORD_BYTES + 4 * MIB
"""All buffers of one message: the largest record, and a full batch of scalars whose tags
are all different and as long as they may be (64 MiB more). The daemon adds the frames
up: MAXMSGSIZE holds for each of them alone."""

FRAMES: Final = 264
"""Frames in one message: header, six columns, and the blobs."""

BLOBS: Final = 256
"""Records other than scalars in one batch; their headers must fit in HEADER_BYTES,
about 200 bytes each with tags of usual length (the client closes a batch earlier
when they are longer)."""

SCALARS: Final = 65_536
"""Scalars in one batch: 1.8 MB of columns, 15 ms of the daemon's time."""

BATCH_TARGET_BYTES: Final = 1 * MIB
"""A batch is sent when it holds this much: throughput of ipc and tcp is flat from here on."""

BATCH_INTERVAL_S: Final = 0.05
"""A batch is sent at the latest this long after its first record: half of the
latency that a person notices, and 20 wake-ups a second."""

BATCH_INTERVAL_MAX_S: Final = 2.0
"""The longest that a daemon may ask for when many ranks send: below the time without an
answer, and a point that is seen two seconds later is still seen as it happens."""

IN_FLIGHT_BYTES: Final = 64 * MIB
"""Sent and not yet acknowledged, a session. Enough for 1 GB/s over a 60 ms round trip."""

IN_FLIGHT_MESSAGES: Final = 64
"""The same in messages: what libzmq's queue may hold, which is lost with the peer."""

# -- what records may say -----------------------------------------------------------------

TAG_BYTES: Final = 1_000
"""UTF-8 bytes of a tag. TensorBoard shows about 100 characters."""

TAGS: Final = 100_000
"""Tags of a run. TensorBoard took 1.6 minutes to list a tenth of that (its issue 4170)."""

RUN_BYTES: Final = 200
"""UTF-8 bytes of a run's name; with its separators escaped it must fit a file name (255)."""

RUN_COMPONENTS: Final = 16
"""Directories that a run's name may span."""

HOST_BYTES: Final = 255
"""A host name, as in POSIX."""

ABOUT_ENTRIES: Final = 32
"""What a rank says about itself: versions, device, command line, each under a name."""

ABOUT_KEY_BYTES: Final = 32
"""Such a name."""

ABOUT_VALUE_BYTES: Final = 1 * KIB
"""What stands under it: a command line fits, or most of it."""

ABOUT_BYTES: Final = 8 * KIB
"""All of it: an eighth of a header."""

SUFFIX_BYTES: Final = 64
"""`filename_suffix`: part of a file name that also holds time, host and pid."""

WORLD_SIZE: Final = 100_000
"""Ranks of a job: the largest known training jobs have a third of it."""

DIMENSIONS: Final = 8
"""Dimensions of a tensor."""

TENSOR_ELEMENTS: Final = 16 * MIB
"""Numbers of a tensor that is kept as such. In an event a negative integer takes ten bytes,
in a projector's file any number up to twenty."""

BOXES: Final = 10_000
"""Boxes drawn on one picture. A detector that is not yet trained gives some hundred."""

JSON_BYTES: Final = 1 * MIB
"""Labels, a layout of charts, hyperparameters, a scene: 10,000 names of 100 bytes. Parsed it
takes up to 25 times as much."""

JSON_DEPTH: Final = 32
"""Levels of a scene, which is the only JSON without a fixed form: three.js has five."""

# -- time --------------------------------------------------------------------------------

ANSWER_TIMEOUT_S: Final = 3.0
"""Without an answer for this long the client opens a new connection. Above the
pause of a group commit on a busy disk, below what a person waits for."""

BEAT_INTERVAL_S: Final = 1.0
"""A client that has nothing to send says that it is there, and asks whether the daemon is."""

SESSION_TIMEOUT_S: Final = 30.0
"""A session that has not been heard of for this long is gone. Ten answers' time:
a process stopped in a debugger comes back with nothing lost."""

# -- journal -----------------------------------------------------------------------------

SEGMENT_BYTES: Final = 64 * MIB
"""A segment is closed when it holds this much: the unit in which a journal is deleted."""

ENTRY_BYTES: Final = MESSAGE_BYTES + HEADER_BYTES + 64 * KIB
"""The largest entry: a message, the journal's own words about it, the table of its frames
and what fills them up to multiples of 8. A length above it in a segment is damage."""
