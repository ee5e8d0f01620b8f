"""The models of images, judged on stored rows."""

from replib.claims.judging import images

VERDICTS = {"images": lambda rows: images(rows["images"])}
