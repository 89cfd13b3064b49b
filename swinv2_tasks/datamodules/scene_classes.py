"""The classes of scene parsing: ADE20K's names and colors, and the class lists of other datasets.

ADE20K: https://arxiv.org/abs/1608.05442; the 150 classes of its scene parsing benchmark, in their order.
"""

from collections.abc import Sequence
from pathlib import Path

from swinv2_tasks.datamodules.classes import read_lines
from swinv2_tasks.drawing import distinct_colors
from swinv2_tasks.errors import UserError

_NAMES = """\
wall; building; sky; floor; tree; ceiling; road; bed; windowpane; grass; cabinet; sidewalk; person; earth; door;
table; mountain; plant; curtain; chair; car; water; painting; sofa; shelf; house; sea; mirror; rug; field; armchair;
seat; fence; desk; rock; wardrobe; lamp; bathtub; railing; cushion; base; box; column; signboard; chest of drawers;
counter; sand; sink; skyscraper; fireplace; refrigerator; grandstand; path; stairs; runway; case; pool table;
pillow; screen door; stairway; river; bridge; bookcase; blind; coffee table; toilet; flower; book; hill; bench;
countertop; stove; palm; kitchen island; computer; swivel chair; boat; bar; arcade machine; hovel; bus; towel;
light; truck; tower; chandelier; awning; streetlight; booth; television; airplane; dirt track; apparel; pole; land;
bannister; escalator; ottoman; bottle; buffet; poster; stage; van; ship; fountain; conveyer belt; canopy; washer;
plaything; swimming pool; stool; barrel; basket; waterfall; tent; bag; minibike; cradle; oven; ball; food; step;
tank; trade name; microwave; pot; animal; bicycle; lake; dishwasher; screen; blanket; sculpture; hood; sconce; vase;
traffic light; tray; ashcan; fan; pier; crt screen; plate; monitor; bulletin board; shower; radiator; glass; clock;
flag"""
_COLORS = """\
787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846 08ff33 ff0652 8fff8c
ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff 08ffd6 07ffe0 ffb806 0aff47
ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00
1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff 0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85 ff0000 ffa300
ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00 00ff99 ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014 ffb8b8
001fff 00ff3d 0047ff ff00cc 00ffc2 00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff
a3ff00 ffeb00 08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00
ff00a3 ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff 00ffcc
2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8 005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff"""

ADE20K_NAMES: tuple[str, ...] = tuple(_NAMES.replace("\n", " ").split("; "))
"""The first of each class's synonyms; label i + 1 is ADE20K_NAMES[i]."""

ADE20K_COLORS: tuple[tuple[int, int, int], ...] = tuple(
    (red, green, blue) for red, green, blue in map(bytes.fromhex, _COLORS.split())
)
"""RGB in which ADE20K's classes are usually drawn."""

MOST_CLASSES = 254
"""As many as 8-bit label maps can distinguish, beside 0 for no class and 255 for ignored pixels in training."""


def colors(number: int) -> list[tuple[int, int, int]]:
    """RGB of a number of classes: ADE20K's own of its 150, of another number colors that are far from each other."""
    return list(ADE20K_COLORS) if number == len(ADE20K_COLORS) else distinct_colors(number)


def scene_class_names(source: str | Path | Sequence[str] | None, prefix: str = "data.") -> list[str]:
    """Names of the classes, that of label 1 first.

    Args:
        source: A list of names; or a text file with a name per line, or a table like ADE20K's objectInfo150.txt,
            separated by tabs, with a column `Name`; in both, what follows a comma is a synonym and left out. None:
            ADE20K's.
        prefix: What messages write before the names of settings.

    Raises:
        UserError: The file is missing or no text, or the list is too short or too long.
    """
    if source is None:
        return list(ADE20K_NAMES)
    if isinstance(source, str | Path):
        expected = "a name per line, or a table like objectInfo150.txt"
        lines = read_lines(source, "class list (data.class_names)", expected)
        rows = [line.split("\t") for line in lines if line.strip()]
        header = [cell.strip().lower() for cell in rows[0]] if rows else []
        column = header.index("name") if len(header) > 1 and "name" in header else None
        if column is not None and any(len(row) != len(header) for row in rows):
            raise UserError(f"{source}: a line has another number of columns than the first; expected {expected}.")
        cells = [row[0] for row in rows] if column is None else [row[column] for row in rows[1:]]
        source = [cell.split(",")[0].strip() for cell in cells]
    if len(source) == 1:
        raise UserError(
            f"{prefix}class_names has one class, {source[0]}: there is nothing to distinguish it from, so any model "
            "has a loss of 0 and an mIoU of 1.0. Name what surrounds it as well and say that it is a class: "
            f"{prefix}class_names=[background,{source[0]}] with {prefix}background=class where label maps hold 0 and "
            f"1, with {prefix}label_values={{0: background, 255: {source[0]}}} where they hold 0 and 255."
        )
    if not 2 <= len(source) <= MOST_CLASSES:
        raise UserError(f"{prefix}class_names has {len(source)} classes; expected 2 to {MOST_CLASSES}.")
    return list(source)
