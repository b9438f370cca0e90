@echo off
setlocal
set "PYTHONPATH=%~dp0..;%PYTHONPATH%"
if not defined PULUMI_RUNTIME_VIRTUALENV set "PULUMI_RUNTIME_VIRTUALENV=%~dp0..\.venv"
"%PULUMI_RUNTIME_VIRTUALENV%\Scripts\python.exe" -m homelab.provider %*
