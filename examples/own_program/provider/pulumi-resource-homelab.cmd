@echo off
rem homelab's provider, from the environment of this project (requirements.txt).
"%PULUMI_RUNTIME_VIRTUALENV%\Scripts\python.exe" -m homelab.provider %*
