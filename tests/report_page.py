"""What a report page says, read back from its HTML, so that tests compare numbers and not markup."""

from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "input"}


class Page(HTMLParser):
    """Text and tables by section, attributes that could load something; asserts that every tag is closed in order.

    Attributes:
        tables: rows by table, each a dict from column to the exact value behind the cell; "" for an empty one.
        errors: likewise the standard errors.
        pictures: (description, text within) of each.
        tiles: (name, exact value, about) on top.
        spans: (title, style) of shaded tokens.
    """

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.open, self.text, self.loads, self.tags = [], {}, [], []
        self.section, self.spans, self.pictures, self.tiles, self.ids = None, [], [], [], []
        self.tables: dict[str, list[dict[str, str]]] = {}
        self.errors: dict[str, list[dict[str, str]]] = {}
        self._table, self._columns, self._cell = None, [], -1
        self.feed(html)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = attrs["id"]
        if "id" in attrs:
            self.ids.append(attrs["id"])
        self._table_tag(tag, attrs)
        if tag == "figure":
            self.pictures.append([attrs["aria-label"], ""])
        if tag == "span" and "title" in attrs:
            self.spans.append((attrs["title"], attrs["style"]))
        if "card" in [attrs.get("class")]:
            self.tiles = []
        names = ("src", "href", "xlink:href", "srcset", "action", "data", "poster", "background")
        self.loads += [value for key, value in attrs.items() if key in names]
        assert not any(key.startswith("on") for key in attrs)

    def _table_tag(self, tag, attrs):
        if tag == "table":
            self._table, self._columns = attrs["id"].removeprefix("table-"), []
            self.tables[self._table], self.errors[self._table] = [], []
        elif tag == "tr" and "tbody" in self.open:
            self.tables[self._table].append({})
            self.errors[self._table].append({})
            self._cell = -1
        elif tag == "td":
            self._cell += 1
            self.tables[self._table][-1][self._columns[self._cell]] = attrs["data-value"]
        elif tag == "span" and attrs.get("class") == "error" and "td" in self.open:
            self.errors[self._table][-1][self._columns[self._cell]] = attrs["data-value"]
        elif tag == "dt" and "div" in self.open:
            self.tiles.append(["", None, ""])
        elif tag == "dd" and "div" in self.open and "data-value" in attrs:
            self.tiles[-1][1] = attrs["data-value"]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.text[self.section] = self.text.get(self.section, "") + data
        if self.open and self.open[-1] == "th":
            self._columns.append(data.strip())
        if "figure" in self.open and self.open[-1] in ("text", "tspan"):
            self.pictures[-1][1] += data + "\n"
        if self.open and self.open[-1] == "dt" and "div" in self.open:
            self.tiles[-1][0] += data
        if self.open and self.open[-1] == "dd" and self.tiles and "div" in self.open:
            self.tiles[-1][2] += data

    def rows(self, section: str) -> str:
        """All text of a section in one line."""
        return " ".join(self.text[section].split())
