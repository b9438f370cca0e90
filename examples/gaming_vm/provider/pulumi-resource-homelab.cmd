@echo off
"%PULUMI_RUNTIME_VIRTUALENV%\Scripts\python.exe" -m homelab.provider %*
