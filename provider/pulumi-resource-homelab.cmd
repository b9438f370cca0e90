@echo off
setlocal
rem The engine starts this in the project's folder, and says which environment the program has (Pulumi.yaml, runtime.options.virtualenv).
if defined PYTHONPATH (set "PYTHONPATH=%~dp0..;%PYTHONPATH%") else (set "PYTHONPATH=%~dp0..")
if not defined PULUMI_RUNTIME_VIRTUALENV set "PULUMI_RUNTIME_VIRTUALENV=%~dp0..\.venv"
"%PULUMI_RUNTIME_VIRTUALENV%\Scripts\python.exe" -m homelab.provider %*
