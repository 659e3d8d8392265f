# Sourced by comparisons of many runs below one folder, $out. Started again with the same arguments, they go on where they stopped.

begin() { # begin ARGUMENTS: what was asked for in words; a folder holds the runs of one such
  if [ "$(cat "$out/asked" 2>/dev/null || echo "$1")" != "$1" ]; then
    echo "error: $out holds a comparison with $(cat "$out/asked"): set OUT to another folder, or remove this one" >&2
    exit 1
  fi
  mkdir -p "$out"
  echo "$1" > "$out/asked"
}

part() { # part NAME ARGUMENT...: writes $out/NAME, unless that is there in full
  local folder="$out/$1"
  shift
  if [ -e "$folder/complete" ]; then return; fi
  echo "== $folder"
  python main.py "$@" hydra.run.dir="$folder"
  mkdir -p "$folder" && touch "$folder/complete"
}

report() { # report TITLE: one page of all that is below $out
  python main.py mode=report "report.inputs=[$out]" "report.title='$1'" hydra.run.dir="$out/report"
  echo "everything was written under $out; open $out/report/report.html"
}
