#!/usr/bin/env bash
# Where links lead, by bash itself: a host has hundreds, and each question to a program would be two processes.
#
# Gives: find_folder PATH -> FOLDER; find_linked LINK -> LINKED.

# find_folder PATH - sets FOLDER: where this folder is, without links. Status 1: there is none.
find_folder() {
  local here=${PWD:-/}
  FOLDER=''
  cd -P -- "$1" 2>/dev/null || return 1
  FOLDER=$PWD
  cd -- "$here" 2>/dev/null || cd /
}

# find_linked LINK - sets LINKED: the name of the folder to which this link leads, whether that is there or not; nothing where there is no link.
find_linked() {
  local FOLDER
  LINKED=''
  [[ -L $1 ]] || return 0
  find_folder "$1" || FOLDER=$(readlink "$1") || FOLDER=''
  LINKED=${FOLDER##*/}
}
