#!/bin/sh
# Plays a child of `run`: says its role and process id into one fifo, and ends with the code that it reads from another.
# $1: the role; $2: the directory with the fifos, and perhaps a file `stubborn`.
if [ -e "$2/stubborn" ]; then
    trap '' TERM
else
    trap 'echo "$1 told" > "$2/says"; exit 0' TERM
fi
echo "$1 $$" > "$2/says"
read -r code < "$2/ends"
exit "$code"
