"""How fast a run trains, and how long it will take."""

import math


class Pace:
    """Seconds per image in this process, without its first step, which compiles and uses everything for the first time;
    and seconds of the last evaluation."""

    def __init__(self) -> None:
        self._begin: tuple[float, int] | None = None
        self._seconds_per_image = math.nan
        self._evaluation = 0.0

    def trained(self, seconds: float, images: int) -> None:
        """The seconds and images of training so far, after a step."""
        if self._begin is None:
            self._begin = seconds, images
        elif images > self._begin[1]:
            self._seconds_per_image = (seconds - self._begin[0]) / (images - self._begin[1])

    def evaluated(self, seconds: float) -> None:
        """How long an evaluation took."""
        self._evaluation = seconds

    @property
    def is_known(self) -> bool:
        """Whether there were two steps."""
        return self._seconds_per_image > 0

    @property
    def images_per_second(self) -> float:
        return 1 / self._seconds_per_image

    def seconds_for(self, images: int, evaluations: int = 0) -> float:
        """To train on so many more images, with so many evaluations in between."""
        return images * self._seconds_per_image + evaluations * self._evaluation
