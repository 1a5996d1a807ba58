"""Documented names of a module, read from its source.

Signature, docstring, comments beside parameters, code. Used by ci/docs.py.
"""

import ast
import inspect
import re
from dataclasses import dataclass

OPEN_UP_TO = 25  # lines of source that are shown unfolded


@dataclass
class Name:
    node: ast.AST
    lines: list  # of its source, decorators included


def definitions(path):
    """{name: Name} of the public functions and classes at the top of a file, in their order."""
    text = path.read_text(encoding="utf-8")
    lines, out = text.splitlines(), {}
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            start = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            out[node.name] = Name(node, lines[start - 1 : node.end_lineno])
    return out


def docstring(node):
    return inspect.cleandoc(ast.get_docstring(node) or "")


def first_line(node):
    return docstring(node).split("\n\n")[0].replace("\n", " ")


def signature(node, bound=False):
    arguments = ast.unparse(node.args)
    if bound:
        arguments = re.sub(r"^(self|cls)(, )?", "", arguments)
    return f"({arguments})" + (f" -> {ast.unparse(node.returns)}" if node.returns else "")


def is_dataclass(node):
    return any("dataclass" in ast.unparse(one) for one in node.decorator_list)


def comments(lines):
    """The comment beside each parameter or field, by name."""
    found = (re.match(r"\s+(\w+)\s*[:=,][^#]*#\s*(.+)", line) for line in lines)
    return {hit[1]: hit[2] for hit in found if hit}


def cell(text):
    return text.replace("|", "\\|")


def parameters(one):
    """A table of what stands beside the parameters of a function, or of a dataclass's fields.

    Empty where nothing does.
    """
    node = one.node
    if isinstance(node, ast.FunctionDef):
        args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        head = one.lines[: max(1, len(one.lines) - (node.end_lineno - node.body[0].lineno) - 1)]
        beside = comments(head)
        rows = [
            (arg.arg, ast.unparse(arg.annotation) if arg.annotation else "", beside[arg.arg])
            for arg in args
            if arg.arg in beside
        ]
        return "".join(
            ["| parameter | type | what |\n|---|---|---|\n"] * bool(rows)
            + [f"| `{n}` | {f'`{cell(t)}`' if t else ''} | {cell(w)} |\n" for n, t, w in rows]
        )
    if not is_dataclass(node):
        return ""
    beside, rows = comments(one.lines), []
    for field in node.body:
        if isinstance(field, ast.AnnAssign):
            default = f"`{cell(ast.unparse(field.value))}`" if field.value else ""
            rows.append(
                f"| `{field.target.id}` | `{cell(ast.unparse(field.annotation))}` | {default} | "
                f"{cell(beside.get(field.target.id, ''))} |\n"
            )
    return "".join(["| field | type | default | what |\n|---|---|---|---|\n"] * bool(rows) + rows)


def methods(node):
    """Public methods of a class with a docstring, each as a directive."""
    for one in node.body:
        if isinstance(one, ast.FunctionDef) and not one.name.startswith("_") and docstring(one):
            kind = {ast.unparse(word) for word in one.decorator_list}
            if "property" in kind:
                yield f":::{{py:property}} {one.name}\n{docstring(one)}\n:::\n"
            else:
                flag = "".join(
                    f":{word}:\n" for word in ("staticmethod", "classmethod") if word in kind
                )
                yield (
                    f":::{{py:method}} {one.name}{signature(one, 'staticmethod' not in kind)}\n{flag}\n"
                    f"{docstring(one)}\n:::\n"
                )


def source(one):
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    first, lines = one.node.body[0], list(one.lines)
    if ast.get_docstring(one.node) and len(one.node.body) > 1:  # it stands above already
        start = one.node.end_lineno - len(lines) + 1
        del lines[first.lineno - start : first.end_lineno - start + 1]
    code = highlight("\n".join(lines), PythonLexer(), HtmlFormatter())
    shown = " open" * (len(one.lines) <= OPEN_UP_TO)
    return (
        f'~~~{{raw}} html\n<details class="source"{shown}><summary>Source</summary>\n<div '
        f'class="highlight-python">{code}</div></details>\n~~~\n'
    )


def entry(module, one, level):
    """Markdown that documents a name: heading, signature, docstring, parameters, source."""
    node, inside = one.node, ""
    if isinstance(node, ast.ClassDef):
        init = next(
            (n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None
        )
        head, inside = "class", "\n".join(methods(node))
        arguments = signature(init, True).split(" -> ")[0] if init else ""
    else:
        head, arguments = "function", signature(node)
    return (
        f"{'#' * level} `{node.name}`\n\n:::::{{py:{head}}} {node.name}{arguments}\n:module: "
        f"{module}\n\n{docstring(node)}\n\n"
        f"{parameters(one)}\n{inside}\n:::::\n\n{source(one)}"
    )
