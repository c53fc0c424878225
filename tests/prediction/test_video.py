"""Videos: the masks are those of the frames, the overlay video is as long as the source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from atrous import Predictor
from atrous.cli.parser import main
from atrous.data.images.image_io import read_mask, write_mask
from atrous.prediction.video import camera_address, camera_of, is_video, predict_video

av = pytest.importorskip("av")


@pytest.fixture(scope="module")
def predictor(trained: Path) -> Predictor:
    return Predictor.load(trained, device="cpu", dtype=torch.float32)


def write_video(path: Path, drawn, count: int = 7, size: tuple[int, int] = (48, 62)) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)  # lossless
        stream.width, stream.height, stream.pix_fmt = size[1], size[0], "bgr0"
        for seed in range(count):
            for packet in stream.encode(av.VideoFrame.from_ndarray(drawn(seed, *size)[0], format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def test_masks_are_those_of_every_nth_frame(predictor: Predictor, drawn, tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mkv", drawn)
    told: list[float] = []
    result = predict_video(predictor, tmp_path / "clip.mkv", tmp_path / "out", every=3, progress=told.append)
    assert result.frames == 3 and told == sorted(told)
    assert sorted(path.name for path in result.masks.iterdir()) == ["000000.png", "000003.png", "000006.png"]
    for number in (0, 3, 6):
        expected = predictor(drawn(number, 48, 62)[0])
        assert np.array_equal(read_mask(result.masks / f"{number:06}.png"), expected.mask)
    assert sum(result.areas.values()) == pytest.approx(1) and result.as_dict()["frames"] == 3
    with av.open(str(result.overlay)) as made:
        frames = [frame.to_ndarray(format="rgb24") for frame in made.decode(video=0)]
        assert len(frames) == 3 and frames[0].shape == (48, 62, 3)
        assert float(made.streams.video[0].average_rate) == pytest.approx(10 / 3, rel=0.01)
    overlay = np.asarray(predictor(drawn(0, 48, 62)[0]).overlay()).astype(int)
    assert np.abs(frames[0].astype(int) - overlay).mean() < 25  # lossy, with half the colours
    foreign = {"notes.png": b"", "7.png": b"seven", "000005.png": b"no picture"}
    for name, content in foreign.items():
        (result.masks / name).write_bytes(content)
    write_mask(result.masks / "000009.png", np.zeros((4, 4), np.uint8), predictor.labels)  # of a data set, say
    short = predict_video(predictor, tmp_path / "clip.mkv", tmp_path / "out", every=2, frames=2)
    assert short.frames == 2
    own = ["000000.png", "000002.png"]
    assert sorted(path.name for path in short.masks.iterdir()) == sorted([*own, "000009.png", *foreign])


def test_odd_sizes_are_padded(predictor: Predictor, drawn, tmp_path: Path) -> None:
    write_video(tmp_path / "odd.mkv", drawn, 2, (33, 41))
    result = predict_video(predictor, tmp_path / "odd.mkv", tmp_path / "out")
    assert read_mask(result.masks / "000001.png").shape == (33, 41)
    with av.open(str(result.overlay)) as made:
        assert (made.streams.video[0].height, made.streams.video[0].width) == (34, 42)


def test_what_is_no_video_is_refused(predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"no\.mp4: cannot be read as a video: "):
        predict_video(predictor, tmp_path / "no.mp4", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="there is no video '.*gone.mp4'"):
        predict_video(predictor, tmp_path / "gone.mp4", tmp_path / "out")
    with pytest.raises(ValueError, match="cannot be read as a camera"):
        predict_video(predictor, "webcam:97", tmp_path / "out")
    with pytest.raises(ValueError, match="--every is 0; expected 1 or more"):
        predict_video(predictor, tmp_path / "no.mp4", tmp_path / "out", every=0)
    assert not list((tmp_path / "out").rglob("*.mp4")) if (tmp_path / "out").exists() else True
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ValueError, match=r"pip install 'atrous\[video\]'"):
        predict_video(predictor, tmp_path / "no.mp4", tmp_path / "out")


def test_nothing_is_written_over(predictor: Predictor, trained: Path, tmp_path: Path, capsys) -> None:
    source = tmp_path / "out" / "overlays" / "clip.mp4"
    source.parent.mkdir(parents=True)
    source.write_bytes(b"a film")
    with pytest.raises(ValueError, match="is the video itself and would be overwritten; give another --out"):
        predict_video(predictor, source, tmp_path / "out")
    assert source.read_bytes() == b"a film"
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    videos = [str(tmp_path / "a" / "clip.mp4"), str(tmp_path / "b" / "clip.mkv")]
    assert main(["predict", str(trained), *videos, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
    assert "would both be written to clip.mp4; segment them into two folders" in capsys.readouterr().err


def test_videos_and_cameras_are_known_by_their_names() -> None:
    assert [is_video(name) for name in ("a.MP4", "b.mkv", "webcam", "webcam:2", "c.jpg", "webcam:x")] == [
        True, True, True, True, False, False,
    ]  # fmt: skip
    assert [camera_of(name) for name in ("webcam", "webcam:2", "webcams")] == [0, 2, None]
    assert camera_address(1, "linux") == ("/dev/video1", "v4l2")
    assert camera_address(0, "darwin") == ("0", "avfoundation")
