"""MLflow, on an SQLite file as by default: several values in one call, which does not wait.

It has no histograms.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from benchmarks.work import Image, Values


class Library:
    def __init__(self, directory: Path) -> None:
        os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
        import mlflow

        self._mlflow = mlflow
        mlflow.set_tracking_uri(f"sqlite:///{directory}/mlflow.db")
        mlflow.create_experiment("run", artifact_location=f"file://{directory}/artifacts")
        mlflow.set_experiment("run")
        self._run = mlflow.start_run()

    def scalars(self, scalars: dict[str, float], step: int) -> None:
        self._mlflow.log_metrics(scalars, step=step, synchronous=False)

    def image(self, tag: str, picture: Image, step: int) -> None:
        self._mlflow.log_image(picture.transpose(1, 2, 0), key=tag, step=step, synchronous=False)

    def histogram(self, tag: str, data: Values, step: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._mlflow.flush_async_logging()
        self._mlflow.flush_artifact_async_logging()
        self._mlflow.end_run()

    def count(self, tags: list[str]) -> dict[str, int]:
        client, run = self._mlflow.MlflowClient(), self._run.info.run_id
        pictures = Counter(
            Path(file.path).name.partition("+")[0]
            for file in client.list_artifacts(run, "images")
            if file.path.endswith(".png")
        )
        return {tag: pictures[tag] + len(client.get_metric_history(run, tag)) for tag in tags}
